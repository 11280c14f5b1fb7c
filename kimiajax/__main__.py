import sys

from kimiajax.cli import main

sys.exit(main())
