"""Command lines: argparse and one call each."""
