//! System calls by name and number, and which of them the default profile allows.

/// A system call's number on this machine's architecture.
pub type Number = u32;

/// The number of a name; none where this architecture has no such call.
pub fn number(name: &str) -> Option<Number> {
    let of = |table: &[(&str, libc::c_long)]| {
        table.iter().find(|(known, _)| *known == name).and_then(|(_, number)| Number::try_from(*number).ok())
    };
    of(TABLE).or_else(|| of(OF_THIS_ARCHITECTURE))
}

/// This machine's, as seccomp(2) and the kernel's log have it.
pub const AUDIT_ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

/// A call of a program as a person knows it, or as its numbers where it is another architecture's.
pub fn told(number: Number, arch: u32) -> String {
    match (arch == AUDIT_ARCH, name(number)) {
        (true, Some(name)) => format!("{name} ({number} of {})", std::env::consts::ARCH),
        (true, None) => format!("{number} of {}", std::env::consts::ARCH),
        (false, _) => format!("{number} of the architecture {arch:#010x}"),
    }
}

/// The name of a number.
pub fn name(number: Number) -> Option<&'static str> {
    let mut all = TABLE.iter().chain(OF_THIS_ARCHITECTURE);
    all.find(|(_, known)| Number::try_from(*known) == Ok(number)).map(|(name, _)| *name)
}

/// What an ordinary program needs and what does no harm to the node: everything but what is below, but
/// kernel keyrings, swap, kexec, io_uring, memory of others, and calls that no program of today makes.
#[rustfmt::skip]
pub const HARMLESS: [&str; 298] = [
    "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl", "bind", "brk", "cachestat", "capget",
    "capset", "chdir", "chmod", "chown", "clock_getres", "clock_gettime", "clock_nanosleep", "close",
    "close_range", "connect", "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create",
    "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2",
    "execve", "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fallocate",
    "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fcntl",
    "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat",
    "fstatfs", "fsync", "ftruncate", "futex", "futex_requeue", "futex_wait", "futex_waitv", "futex_wake",
    "futimesat", "get_robust_list", "get_thread_area", "getcpu", "getcwd", "getdents", "getdents64",
    "getegid", "geteuid", "getgid", "getgroups", "getitimer", "getpeername", "getpgid", "getpgrp",
    "getpid", "getppid", "getpriority", "getrandom", "getresgid", "getresuid", "getrlimit", "getrusage",
    "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getxattr", "getxattrat",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy",
    "io_getevents", "io_setup", "io_submit", "ioctl", "ioprio_get", "ioprio_set", "kill",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown", "lgetxattr",
    "link", "linkat", "listen", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lseek",
    "lsetxattr", "lstat", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret",
    "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2", "mlockall", "mmap", "modify_ldt",
    "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedsend", "mq_unlink",
    "mremap", "mseal", "msgctl", "msgget", "msgrcv", "msgsnd", "msync", "munlock", "munlockall", "munmap",
    "name_to_handle_at", "nanosleep", "newfstatat", "open", "openat", "openat2", "pause", "pidfd_open",
    "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll",
    "prctl", "pread64", "preadv", "preadv2", "prlimit64", "process_mrelease", "process_vm_readv",
    "process_vm_writev", "pselect6", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead",
    "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg", "recvmsg", "remap_file_pages",
    "removexattr", "removexattrat", "rename", "renameat", "renameat2", "restart_syscall", "rmdir", "rseq",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
    "select", "semctl", "semget", "semop", "semtimedop", "sendfile", "sendmmsg", "sendmsg", "sendto",
    "set_robust_list", "set_thread_area", "set_tid_address", "setfsgid", "setfsuid", "setgid", "setgroups",
    "setitimer", "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit",
    "setsid", "setsockopt", "setuid", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget",
    "shutdown", "sigaltstack", "signalfd", "signalfd4", "socketpair", "splice", "stat", "statfs", "statx",
    "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo", "tee", "tgkill", "time",
    "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create",
    "timerfd_gettime", "timerfd_settime", "times", "tkill", "truncate", "umask", "uname", "unlink",
    "unlinkat", "utime", "utimensat", "utimes", "vfork", "vmsplice", "wait4", "waitid", "write", "writev",
];

/// What a capability is good for, beside the harmless ones.
#[rustfmt::skip]
pub const BY_CAPABILITY: [(&str, &[&str]); 14] = [
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_ADMIN", &["bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie", "mount", "mount_setattr", "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog", "umount2", "unshare"]),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_adjtime", "clock_settime", "settimeofday"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYSLOG", &["syslog"]),
];

/// The last ones have no constant in libc yet; from 424 on every architecture has the same numbers.
#[rustfmt::skip]
const TABLE: &[(&str, libc::c_long)] = &[
    ("read", libc::SYS_read), ("write", libc::SYS_write), ("close", libc::SYS_close),
    ("fstat", libc::SYS_fstat), ("lseek", libc::SYS_lseek), ("mmap", libc::SYS_mmap),
    ("mprotect", libc::SYS_mprotect), ("munmap", libc::SYS_munmap), ("brk", libc::SYS_brk),
    ("rt_sigaction", libc::SYS_rt_sigaction), ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("rt_sigreturn", libc::SYS_rt_sigreturn), ("ioctl", libc::SYS_ioctl), ("pread64", libc::SYS_pread64),
    ("pwrite64", libc::SYS_pwrite64), ("readv", libc::SYS_readv), ("writev", libc::SYS_writev),
    ("sched_yield", libc::SYS_sched_yield), ("mremap", libc::SYS_mremap), ("msync", libc::SYS_msync),
    ("mincore", libc::SYS_mincore), ("madvise", libc::SYS_madvise), ("shmget", libc::SYS_shmget),
    ("shmat", libc::SYS_shmat), ("shmctl", libc::SYS_shmctl), ("dup", libc::SYS_dup),
    ("nanosleep", libc::SYS_nanosleep), ("getitimer", libc::SYS_getitimer),
    ("setitimer", libc::SYS_setitimer), ("getpid", libc::SYS_getpid), ("sendfile", libc::SYS_sendfile),
    ("socket", libc::SYS_socket), ("connect", libc::SYS_connect), ("accept", libc::SYS_accept),
    ("sendto", libc::SYS_sendto), ("recvfrom", libc::SYS_recvfrom), ("sendmsg", libc::SYS_sendmsg),
    ("recvmsg", libc::SYS_recvmsg), ("shutdown", libc::SYS_shutdown), ("bind", libc::SYS_bind),
    ("listen", libc::SYS_listen), ("getsockname", libc::SYS_getsockname),
    ("getpeername", libc::SYS_getpeername), ("socketpair", libc::SYS_socketpair),
    ("setsockopt", libc::SYS_setsockopt), ("getsockopt", libc::SYS_getsockopt), ("clone", libc::SYS_clone),
    ("execve", libc::SYS_execve), ("exit", libc::SYS_exit), ("wait4", libc::SYS_wait4),
    ("kill", libc::SYS_kill), ("uname", libc::SYS_uname), ("semget", libc::SYS_semget),
    ("semop", libc::SYS_semop), ("semctl", libc::SYS_semctl), ("shmdt", libc::SYS_shmdt),
    ("msgget", libc::SYS_msgget), ("msgsnd", libc::SYS_msgsnd), ("msgrcv", libc::SYS_msgrcv),
    ("msgctl", libc::SYS_msgctl), ("fcntl", libc::SYS_fcntl), ("flock", libc::SYS_flock),
    ("fsync", libc::SYS_fsync), ("fdatasync", libc::SYS_fdatasync), ("truncate", libc::SYS_truncate),
    ("ftruncate", libc::SYS_ftruncate), ("getcwd", libc::SYS_getcwd), ("chdir", libc::SYS_chdir),
    ("fchdir", libc::SYS_fchdir), ("fchmod", libc::SYS_fchmod), ("fchown", libc::SYS_fchown),
    ("umask", libc::SYS_umask), ("gettimeofday", libc::SYS_gettimeofday),
    ("getrusage", libc::SYS_getrusage), ("sysinfo", libc::SYS_sysinfo), ("times", libc::SYS_times),
    ("ptrace", libc::SYS_ptrace), ("getuid", libc::SYS_getuid), ("syslog", libc::SYS_syslog),
    ("getgid", libc::SYS_getgid), ("setuid", libc::SYS_setuid), ("setgid", libc::SYS_setgid),
    ("geteuid", libc::SYS_geteuid), ("getegid", libc::SYS_getegid), ("setpgid", libc::SYS_setpgid),
    ("getppid", libc::SYS_getppid), ("setsid", libc::SYS_setsid), ("setreuid", libc::SYS_setreuid),
    ("setregid", libc::SYS_setregid), ("getgroups", libc::SYS_getgroups),
    ("setgroups", libc::SYS_setgroups), ("setresuid", libc::SYS_setresuid),
    ("getresuid", libc::SYS_getresuid), ("setresgid", libc::SYS_setresgid),
    ("getresgid", libc::SYS_getresgid), ("getpgid", libc::SYS_getpgid), ("setfsuid", libc::SYS_setfsuid),
    ("setfsgid", libc::SYS_setfsgid), ("getsid", libc::SYS_getsid), ("capget", libc::SYS_capget),
    ("capset", libc::SYS_capset), ("rt_sigpending", libc::SYS_rt_sigpending),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait), ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo),
    ("rt_sigsuspend", libc::SYS_rt_sigsuspend), ("sigaltstack", libc::SYS_sigaltstack),
    ("personality", libc::SYS_personality), ("statfs", libc::SYS_statfs), ("fstatfs", libc::SYS_fstatfs),
    ("getpriority", libc::SYS_getpriority), ("setpriority", libc::SYS_setpriority),
    ("sched_setparam", libc::SYS_sched_setparam), ("sched_getparam", libc::SYS_sched_getparam),
    ("sched_setscheduler", libc::SYS_sched_setscheduler),
    ("sched_getscheduler", libc::SYS_sched_getscheduler),
    ("sched_get_priority_max", libc::SYS_sched_get_priority_max),
    ("sched_get_priority_min", libc::SYS_sched_get_priority_min),
    ("sched_rr_get_interval", libc::SYS_sched_rr_get_interval), ("mlock", libc::SYS_mlock),
    ("munlock", libc::SYS_munlock), ("mlockall", libc::SYS_mlockall), ("munlockall", libc::SYS_munlockall),
    ("vhangup", libc::SYS_vhangup), ("pivot_root", libc::SYS_pivot_root), ("prctl", libc::SYS_prctl),
    ("adjtimex", libc::SYS_adjtimex), ("chroot", libc::SYS_chroot), ("sync", libc::SYS_sync),
    ("acct", libc::SYS_acct), ("settimeofday", libc::SYS_settimeofday), ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2), ("swapon", libc::SYS_swapon), ("swapoff", libc::SYS_swapoff),
    ("reboot", libc::SYS_reboot), ("sethostname", libc::SYS_sethostname),
    ("setdomainname", libc::SYS_setdomainname), ("init_module", libc::SYS_init_module),
    ("delete_module", libc::SYS_delete_module), ("quotactl", libc::SYS_quotactl),
    ("gettid", libc::SYS_gettid), ("readahead", libc::SYS_readahead), ("setxattr", libc::SYS_setxattr),
    ("lsetxattr", libc::SYS_lsetxattr), ("fsetxattr", libc::SYS_fsetxattr),
    ("getxattr", libc::SYS_getxattr), ("lgetxattr", libc::SYS_lgetxattr),
    ("fgetxattr", libc::SYS_fgetxattr), ("listxattr", libc::SYS_listxattr),
    ("llistxattr", libc::SYS_llistxattr), ("flistxattr", libc::SYS_flistxattr),
    ("removexattr", libc::SYS_removexattr), ("lremovexattr", libc::SYS_lremovexattr),
    ("fremovexattr", libc::SYS_fremovexattr), ("tkill", libc::SYS_tkill), ("futex", libc::SYS_futex),
    ("sched_setaffinity", libc::SYS_sched_setaffinity), ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("io_setup", libc::SYS_io_setup), ("io_destroy", libc::SYS_io_destroy),
    ("io_getevents", libc::SYS_io_getevents), ("io_submit", libc::SYS_io_submit),
    ("io_cancel", libc::SYS_io_cancel), ("lookup_dcookie", libc::SYS_lookup_dcookie),
    ("remap_file_pages", libc::SYS_remap_file_pages), ("getdents64", libc::SYS_getdents64),
    ("set_tid_address", libc::SYS_set_tid_address), ("restart_syscall", libc::SYS_restart_syscall),
    ("semtimedop", libc::SYS_semtimedop), ("fadvise64", libc::SYS_fadvise64),
    ("timer_create", libc::SYS_timer_create), ("timer_settime", libc::SYS_timer_settime),
    ("timer_gettime", libc::SYS_timer_gettime), ("timer_getoverrun", libc::SYS_timer_getoverrun),
    ("timer_delete", libc::SYS_timer_delete), ("clock_settime", libc::SYS_clock_settime),
    ("clock_gettime", libc::SYS_clock_gettime), ("clock_getres", libc::SYS_clock_getres),
    ("clock_nanosleep", libc::SYS_clock_nanosleep), ("exit_group", libc::SYS_exit_group),
    ("epoll_ctl", libc::SYS_epoll_ctl), ("tgkill", libc::SYS_tgkill), ("mbind", libc::SYS_mbind),
    ("set_mempolicy", libc::SYS_set_mempolicy), ("get_mempolicy", libc::SYS_get_mempolicy),
    ("mq_open", libc::SYS_mq_open), ("mq_unlink", libc::SYS_mq_unlink),
    ("mq_timedsend", libc::SYS_mq_timedsend), ("mq_timedreceive", libc::SYS_mq_timedreceive),
    ("mq_notify", libc::SYS_mq_notify), ("mq_getsetattr", libc::SYS_mq_getsetattr),
    ("kexec_load", libc::SYS_kexec_load), ("waitid", libc::SYS_waitid), ("add_key", libc::SYS_add_key),
    ("request_key", libc::SYS_request_key), ("keyctl", libc::SYS_keyctl),
    ("ioprio_set", libc::SYS_ioprio_set), ("ioprio_get", libc::SYS_ioprio_get),
    ("inotify_add_watch", libc::SYS_inotify_add_watch), ("inotify_rm_watch", libc::SYS_inotify_rm_watch),
    ("migrate_pages", libc::SYS_migrate_pages), ("openat", libc::SYS_openat),
    ("mkdirat", libc::SYS_mkdirat), ("mknodat", libc::SYS_mknodat), ("fchownat", libc::SYS_fchownat),
    ("newfstatat", libc::SYS_newfstatat), ("unlinkat", libc::SYS_unlinkat), ("linkat", libc::SYS_linkat),
    ("symlinkat", libc::SYS_symlinkat), ("readlinkat", libc::SYS_readlinkat),
    ("fchmodat", libc::SYS_fchmodat), ("faccessat", libc::SYS_faccessat), ("pselect6", libc::SYS_pselect6),
    ("ppoll", libc::SYS_ppoll), ("unshare", libc::SYS_unshare),
    ("set_robust_list", libc::SYS_set_robust_list), ("get_robust_list", libc::SYS_get_robust_list),
    ("splice", libc::SYS_splice), ("tee", libc::SYS_tee), ("vmsplice", libc::SYS_vmsplice),
    ("move_pages", libc::SYS_move_pages), ("utimensat", libc::SYS_utimensat),
    ("epoll_pwait", libc::SYS_epoll_pwait), ("timerfd_create", libc::SYS_timerfd_create),
    ("fallocate", libc::SYS_fallocate), ("timerfd_settime", libc::SYS_timerfd_settime),
    ("timerfd_gettime", libc::SYS_timerfd_gettime), ("accept4", libc::SYS_accept4),
    ("signalfd4", libc::SYS_signalfd4), ("eventfd2", libc::SYS_eventfd2),
    ("epoll_create1", libc::SYS_epoll_create1), ("dup3", libc::SYS_dup3), ("pipe2", libc::SYS_pipe2),
    ("inotify_init1", libc::SYS_inotify_init1), ("preadv", libc::SYS_preadv),
    ("pwritev", libc::SYS_pwritev), ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
    ("perf_event_open", libc::SYS_perf_event_open), ("recvmmsg", libc::SYS_recvmmsg),
    ("fanotify_init", libc::SYS_fanotify_init), ("fanotify_mark", libc::SYS_fanotify_mark),
    ("prlimit64", libc::SYS_prlimit64), ("name_to_handle_at", libc::SYS_name_to_handle_at),
    ("open_by_handle_at", libc::SYS_open_by_handle_at), ("clock_adjtime", libc::SYS_clock_adjtime),
    ("syncfs", libc::SYS_syncfs), ("sendmmsg", libc::SYS_sendmmsg), ("setns", libc::SYS_setns),
    ("getcpu", libc::SYS_getcpu), ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev), ("kcmp", libc::SYS_kcmp),
    ("finit_module", libc::SYS_finit_module), ("sched_setattr", libc::SYS_sched_setattr),
    ("sched_getattr", libc::SYS_sched_getattr), ("renameat2", libc::SYS_renameat2),
    ("seccomp", libc::SYS_seccomp), ("getrandom", libc::SYS_getrandom),
    ("memfd_create", libc::SYS_memfd_create), ("kexec_file_load", libc::SYS_kexec_file_load),
    ("bpf", libc::SYS_bpf), ("execveat", libc::SYS_execveat), ("userfaultfd", libc::SYS_userfaultfd),
    ("membarrier", libc::SYS_membarrier), ("mlock2", libc::SYS_mlock2),
    ("copy_file_range", libc::SYS_copy_file_range), ("preadv2", libc::SYS_preadv2),
    ("pwritev2", libc::SYS_pwritev2), ("pkey_mprotect", libc::SYS_pkey_mprotect),
    ("pkey_alloc", libc::SYS_pkey_alloc), ("pkey_free", libc::SYS_pkey_free), ("statx", libc::SYS_statx),
    ("rseq", libc::SYS_rseq), ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("io_uring_setup", libc::SYS_io_uring_setup), ("io_uring_enter", libc::SYS_io_uring_enter),
    ("io_uring_register", libc::SYS_io_uring_register), ("open_tree", libc::SYS_open_tree),
    ("move_mount", libc::SYS_move_mount), ("fsopen", libc::SYS_fsopen), ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount), ("fspick", libc::SYS_fspick), ("pidfd_open", libc::SYS_pidfd_open),
    ("clone3", libc::SYS_clone3), ("close_range", libc::SYS_close_range), ("openat2", libc::SYS_openat2),
    ("pidfd_getfd", libc::SYS_pidfd_getfd), ("faccessat2", libc::SYS_faccessat2),
    ("process_madvise", libc::SYS_process_madvise), ("epoll_pwait2", libc::SYS_epoll_pwait2),
    ("mount_setattr", libc::SYS_mount_setattr), ("quotactl_fd", libc::SYS_quotactl_fd),
    ("landlock_create_ruleset", libc::SYS_landlock_create_ruleset),
    ("landlock_add_rule", libc::SYS_landlock_add_rule),
    ("landlock_restrict_self", libc::SYS_landlock_restrict_self), ("memfd_secret", libc::SYS_memfd_secret),
    ("process_mrelease", libc::SYS_process_mrelease), ("futex_waitv", libc::SYS_futex_waitv),
    ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node), ("cachestat", 451), ("fchmodat2", 452),
    ("map_shadow_stack", 453), ("futex_wake", 454), ("futex_wait", 455), ("futex_requeue", 456),
    ("statmount", 457), ("listmount", 458), ("lsm_get_self_attr", 459), ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461), ("mseal", 462), ("setxattrat", 463), ("getxattrat", 464),
    ("listxattrat", 465), ("removexattrat", 466),
];

/// The old calls that newer architectures do without.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OF_THIS_ARCHITECTURE: &[(&str, libc::c_long)] = &[
    ("open", libc::SYS_open), ("stat", libc::SYS_stat), ("lstat", libc::SYS_lstat),
    ("poll", libc::SYS_poll), ("access", libc::SYS_access), ("pipe", libc::SYS_pipe),
    ("select", libc::SYS_select), ("dup2", libc::SYS_dup2), ("pause", libc::SYS_pause),
    ("alarm", libc::SYS_alarm), ("fork", libc::SYS_fork), ("vfork", libc::SYS_vfork),
    ("getdents", libc::SYS_getdents), ("rename", libc::SYS_rename), ("mkdir", libc::SYS_mkdir),
    ("rmdir", libc::SYS_rmdir), ("creat", libc::SYS_creat), ("link", libc::SYS_link),
    ("unlink", libc::SYS_unlink), ("symlink", libc::SYS_symlink), ("readlink", libc::SYS_readlink),
    ("chmod", libc::SYS_chmod), ("chown", libc::SYS_chown), ("lchown", libc::SYS_lchown),
    ("getrlimit", libc::SYS_getrlimit), ("getpgrp", libc::SYS_getpgrp), ("utime", libc::SYS_utime),
    ("mknod", libc::SYS_mknod), ("uselib", libc::SYS_uselib), ("ustat", libc::SYS_ustat),
    ("sysfs", libc::SYS_sysfs), ("modify_ldt", libc::SYS_modify_ldt), ("arch_prctl", libc::SYS_arch_prctl),
    ("setrlimit", libc::SYS_setrlimit), ("iopl", libc::SYS_iopl), ("ioperm", libc::SYS_ioperm),
    ("time", libc::SYS_time), ("set_thread_area", libc::SYS_set_thread_area),
    ("get_thread_area", libc::SYS_get_thread_area), ("epoll_create", libc::SYS_epoll_create),
    ("epoll_wait", libc::SYS_epoll_wait), ("utimes", libc::SYS_utimes),
    ("inotify_init", libc::SYS_inotify_init), ("futimesat", libc::SYS_futimesat),
    ("renameat", libc::SYS_renameat), ("sync_file_range", libc::SYS_sync_file_range),
    ("signalfd", libc::SYS_signalfd), ("eventfd", libc::SYS_eventfd),
];

#[cfg(not(target_arch = "x86_64"))]
const OF_THIS_ARCHITECTURE: &[(&str, libc::c_long)] = &[];
