"""`python -m vocalremover`: the same as the command `vocalremover`."""

from vocalremover.cli import main

if __name__ == "__main__":
    main()
