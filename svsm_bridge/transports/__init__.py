"""Ways into the dispatcher: in process, over a Unix socket, TDX service call, device registers."""
