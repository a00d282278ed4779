"""One Prefect task per stage: cache, retries, GPU slot and artifacts outside, one engine call inside."""
