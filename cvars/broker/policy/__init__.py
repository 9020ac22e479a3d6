"""Release policy: a closed world in typed YAML. No policy attached means no; several attached mean all of them."""
