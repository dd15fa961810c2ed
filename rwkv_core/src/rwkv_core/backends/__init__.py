"""The contract with backends: their operations, their description, and the offload plan."""
