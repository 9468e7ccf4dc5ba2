"""Files for Daft: columns `path` and `data`, the latter downloaded by Daft."""

from __future__ import annotations

import os
from typing import Any


def files(source: str) -> Any:
    """All files below a folder or s3:// prefix; lazy."""
    import daft
    from daft.functions import download
    from daft.io import IOConfig, S3Config

    config = None
    if source.startswith("s3://"):
        # it takes keys and region from the standard variables, but not the endpoint
        config = IOConfig(
            s3=S3Config(
                endpoint_url=os.environ["AWS_ENDPOINT_URL"],
                key_id=os.environ["AWS_ACCESS_KEY_ID"],
                access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
                region_name=os.environ["AWS_REGION"],
                use_ssl=False,
            )
        )
    found = daft.from_glob_path(f"{source}/**", io_config=config)
    return found.select("path", download(daft.col("path"), io_config=config).alias("data"))
