"""Flower's `flwr-serverapp`, ended by the kernel when SuperExec ends, and quick to fetch replies."""

from fedhealth.supervision.die_with_parent import die_with_parent


def main() -> None:
    """Flower's own entry point."""
    die_with_parent()
    from flwr.superlink.cli import flwr_serverapp

    from fedhealth.flower.prompt_pulls import pull_promptly

    pull_promptly()
    flwr_serverapp()


if __name__ == "__main__":
    main()
