"""`python -m idfx` is the same program as `idfx`."""

from idfx_cli.main import main

if __name__ == "__main__":
    main()
