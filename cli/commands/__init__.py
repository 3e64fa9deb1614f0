"""The commands of the program: each module has a click command named `command`; each folder is a group of commands."""
