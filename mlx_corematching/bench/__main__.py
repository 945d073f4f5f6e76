import sys

from mlx_corematching.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
