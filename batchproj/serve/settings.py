"""What the operator of the service allows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from batchproj.decode.limits import Limits

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseModel):
    """Of one service. Times are seconds.

    `token` is what a request has to carry, None for anybody who reaches the service. `hosts` are names that it is
    called by, beside those of this machine's loopback. `url_hosts` are the hosts that a query may name a file on.
    `bodies_bytes` is for all bodies that are there at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    token: str | None = Field(default=None, min_length=16, repr=False)
    hosts: tuple[str, ...] = ()
    url_hosts: tuple[str, ...] = ()
    body_bytes: int = Field(default=20 * 2**20, gt=0)
    bodies_bytes: int = Field(default=256 * 2**20, gt=0)
    body_s: float = Field(default=30, gt=0)
    query_s: float = Field(default=60, gt=0)
    queries: int = Field(default=64, ge=1)
    query_threads: int = Field(default=8, ge=1)
    reads: int = Field(default=128, ge=1)
    read_threads: int = Field(default=16, ge=1)
    poll_s: float = Field(default=1.0, gt=0)
    batch_s: float = Field(default=0.004, ge=0)
    model_threads: int = Field(default=2, ge=1)
    limits: Limits = Limits(
        item_bytes=20 * 2**20, audio_s=600, video_s=600, image_pixels=64_000_000, text_bytes=100_000, decode_s=5
    )
