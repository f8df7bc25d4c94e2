"""The command lines that have no module of their own."""
