"""`python -m fedhealth` is the `fedhealth` command."""

from fedhealth.cli.app import main

main()
