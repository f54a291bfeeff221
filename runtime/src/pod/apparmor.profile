# What a container may do on a host with AppArmor, unless it names a profile of its own. Files, capabilities and the
# network are the container's own business: namespaces, user and seccomp hold it. This closes what of the node's kernel
# can be reached through /proc and /sys, and mounts.
profile berth-default flags=(attach_disconnected,mediate_deleted) {
  file,
  capability,
  network,
  umount,
  unix,

  # From whoever runs on the node, and among those of this profile.
  signal (receive) peer=unconfined,
  signal (send, receive) peer=berth-default,
  ptrace (trace, read, tracedby, readby) peer=berth-default,

  deny mount,
  deny remount,
  deny pivot_root,

  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /proc/{acpi,asound,bus,fs,irq,scsi}/** wklx,
  deny /proc/sys/{abi,debug,dev,fs,sunrpc,user,vm}/** wklx,
  deny /proc/sys/kernel/{core_pattern,core_pipe_limit,core_uses_pid,hotplug,modprobe,modules_disabled} wklx,
  deny /proc/sys/kernel/{kexec_load_disabled,panic*,perf*,pid_max,printk*,randomize_va_space,sysrq} wklx,
  deny /proc/sys/kernel/{threads-max,unprivileged*,yama/**,keys/**} wklx,

  deny /sys/firmware/** rwklx,
  deny /sys/kernel/{security,debug,tracing}/** rwklx,
  deny /sys/{block,bus,class,dev,devices,hypervisor,module,power}/** wklx,
}
