"""One line for other libraries: each module here needs the library whose name it has."""
