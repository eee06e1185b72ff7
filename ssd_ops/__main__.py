from ssd_ops.cli import main

main()
