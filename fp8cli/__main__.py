"""`python -m fp8cli` is the `fp8` command."""

from fp8cli.cli.app import main

if __name__ == "__main__":
    main()
