"""Reading and writing models: directories, the hub, other formats."""
