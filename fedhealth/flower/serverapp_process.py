"""Flower's `flwr-serverapp`, ended by the kernel when SuperExec ends."""

from fedhealth.supervision.die_with_parent import die_with_parent


def main() -> None:
    """Flower's own entry point."""
    die_with_parent()
    from flwr.superlink.cli import flwr_serverapp

    flwr_serverapp()


if __name__ == "__main__":
    main()
