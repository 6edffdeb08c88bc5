"""`python -m modern_llm`."""

from modern_llm.command import main

if __name__ == "__main__":
    main()
