"""Entry point of every sandbox image."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from supervisor.supervisor import main

main()
