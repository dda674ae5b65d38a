"""The findings of ddpm.cluster.doctor about this machine."""


def main(argv: list[str] | None = None) -> int:
    """Prints them; 0."""
    from ddpm.cluster import doctor

    return doctor.main(argv)
