"""`python -m controlplane` is `limiquantix-controlplane`."""

from controlplane.app import main

if __name__ == "__main__":
    main()
