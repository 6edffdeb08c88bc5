"""Base → SFT → reward model → DPO → RL → verifier → best of n with one command: what runs (`task`, `plan`, `controls`,
noted in `state`), what every policy is measured on (`settings`, `measures`), and which answers better (`duels`)."""
