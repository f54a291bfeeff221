//! Memory that is not needed again is given back: a shim is resident once per container, and most of what it ever
//! touches it touches at the launch.

/// Gives free heap and the stack below the caller back to the kernel. `malloc_trim(3)`, `madvise(2)`.
pub fn give_back() {
    // SAFETY: malloc_trim touches only what is free, and locks the heap itself.
    unsafe { libc::malloc_trim(0) };
    forget_stack();
}

/// The pages that deeper calls have dirtied: nobody has anything on them now.
#[inline(never)]
fn forget_stack() {
    const PAGE: usize = 4096;
    /// More than any call of ours goes down.
    const DEPTH: usize = 512 * 1024;
    let here = 0u8;
    // One page of distance keeps this frame, and what the call below pushes, out of it.
    let end = (&raw const here).addr() / PAGE * PAGE - PAGE;
    let start = end - DEPTH;
    // SAFETY: the range lies wholly below the frames that are in use: the stack grows down, the process has one
    // thread and no alternate signal stack there. What of it was never mapped makes ENOMEM, which is no loss.
    unsafe { libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
}

/// Where the first such byte is; the C library's search, many bytes at a time.
pub fn find(byte: u8, bytes: &[u8]) -> Option<usize> {
    // SAFETY: memchr(3) reads at most as many bytes from the pointer as it is told, and the slice has as many.
    let found = unsafe { libc::memchr(bytes.as_ptr().cast(), byte.into(), bytes.len()) };
    (!found.is_null()).then(|| found.addr() - bytes.as_ptr().addr())
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_first_of_its_kind_is_found() {
        for (bytes, at) in [(&b""[..], None), (b"a", None), (b"\n", Some(0)), (b"ab\nc\n", Some(2))] {
            assert_eq!(find(b'\n', bytes), at);
        }
    }
}
