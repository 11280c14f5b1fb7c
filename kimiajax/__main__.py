import sys

from kimiajax.cli.main import main

sys.exit(main())
