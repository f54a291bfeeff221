//! podman with `--runtime`: skipped where there is none.
