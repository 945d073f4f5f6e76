import sys

from mlx_corematching.convert.command import main

sys.exit(main())
