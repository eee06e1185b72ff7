from ssd_ops.tinyssd.cli import main

main()
