"""What the python image promises to run; every warning is an error."""

import io
import sys
import warnings

warnings.simplefilter("error")

import matplotlib  # noqa: E402  warnings are errors before the first import
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import requests  # noqa: E402

assert sys.version_info[:2] == (3, 13)
assert matplotlib.get_backend().lower() == "agg", matplotlib.get_backend()
assert matplotlib.get_cachedir() == "/opt/sandbox/matplotlib", matplotlib.get_cachedir()
assert requests.Request("GET", "http://localhost/").prepare().url == "http://localhost/"
assert pd.DataFrame({"a": np.arange(4)}).a.sum() == 6
assert pd.Timestamp("2026-01-01", tz="Europe/Berlin").utcoffset().seconds == 3600
plt.plot([1, 2, 4])
plt.title("smoke")
plt.savefig(png := io.BytesIO())
assert png.getvalue().startswith(b"\x89PNG")
