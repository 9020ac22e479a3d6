"""The trusted component: boot sequence and glue of bridge, messages, variables and store."""
