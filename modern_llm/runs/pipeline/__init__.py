"""Base → SFT → reward model → DPO → RL → verifier → best of n with one command: what runs (`task`, `plan`), what every
policy is measured on (`measures`), and which of two policies answers better (`duels`)."""
