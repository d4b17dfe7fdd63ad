"""`python -m polyak_lab` is `polyak`."""

from polyak_lab.cli.app import main

if __name__ == "__main__":
    main()
