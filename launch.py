"""Run an experiment: `python launch.py [group=choice] [key=value] …`; `python launch.py --help` tells more."""

from modern_llm.command import main

if __name__ == "__main__":
    main()
