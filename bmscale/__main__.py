"""`python -m bmscale` is `bmscale`; launchers need it as a module."""

from bmscale.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
