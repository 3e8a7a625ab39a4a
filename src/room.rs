//! How much memory this process may still take.
//!
//! Linux grants memory that it does not have and, once it is touched, kills the process: no allocation says so. What the
//! system could give, and what the control groups of the process (a container, a batch job) leave of their limits, is
//! in files.

use std::fs::read_to_string;
use std::path::Path;

/// The files of a control group: limit, use, and the lines of `memory.stat` for pages of files, which are given back
/// when memory is short.
struct Files {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    pages: [&'static str; 2],
}

/// Version 2 of control groups.
const UNIFIED: Files = Files {
    mount: "/sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    pages: ["inactive_file", "active_file"],
};

/// Version 1.
const APART: Files = Files {
    mount: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    pages: ["total_inactive_file", "total_active_file"],
};

/// Bytes that are free, swap included but for what a control group says of it; none where the system does not tell.
pub fn free_bytes() -> Option<usize> {
    let system = of_system(&read_to_string("/proc/meminfo").ok()?)?;
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = groups.lines().filter_map(group).flat_map(|(files, path)| {
        let read = |folder: &Path, name: &str| read_to_string(folder.join(name)).ok();
        // A group's limit holds for all groups inside of it; in a container the path may begin outside of what is seen.
        Path::new(path).ancestors().filter_map(move |folder| {
            let folder = Path::new(files.mount).join(folder.strip_prefix("/").unwrap_or(folder));
            let [limit, used, stat] =
                [files.limit, files.used, "memory.stat"].map(|name| read(&folder, name));
            of_group(&limit?, &used?, &stat.unwrap_or_default(), files.pages)
        })
    });
    left.chain([system]).min()
}

/// From `/proc/meminfo`.
fn of_system(text: &str) -> Option<usize> {
    let kib = |name: &str| {
        line(text, name).and_then(|value| value.trim_end_matches("kB").trim().parse::<usize>().ok())
    };
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) << 10)
}

/// Which files have the limits of a line of `/proc/self/cgroup`, and the path of the group; none where it has nothing
/// to do with memory.
fn group(text: &str) -> Option<(&'static Files, &str)> {
    let mut parts = text.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    match controllers {
        "" => Some((&UNIFIED, path)),
        _ if controllers.split(',').any(|one| one == "memory") => Some((&APART, path)),
        _ => None,
    }
}

/// What a group leaves; none without a limit.
fn of_group(limit: &str, used: &str, stat: &str, pages: [&str; 2]) -> Option<usize> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    let pages: usize = pages.iter().filter_map(|name| line(stat, name).and_then(number)).sum();
    Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(pages)))
}

/// The rest of the line that begins with a name.
fn line<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(char::is_whitespace));
    rest.map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_can_give_what_is_available_and_its_swap() {
        let text = "MemTotal:       100 kB\nMemFree:   1 kB\nMemAvailable:   40 kB\nSwapFree:        2 kB\n";
        assert_eq!(of_system(text), Some(42 << 10));
        assert_eq!(of_system("MemAvailable: 40 kB\n"), Some(40 << 10));
        assert_eq!(of_system("MemTotal: 40 kB\n"), None);
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_cannot_be_given_back() {
        let stat = "anon 600\nfile 300\ninactive_file 100\nactive_file 150\nactive_file_else 9\n";
        assert_eq!(of_group("1000\n", "900\n", stat, UNIFIED.pages), Some(350));
        assert_eq!(of_group("max\n", "900\n", stat, UNIFIED.pages), None);
        assert_eq!(of_group("500", "900", "", UNIFIED.pages), Some(0));
    }

    #[test]
    fn both_versions_of_groups_are_known() {
        let path = |text| group(text).map(|(files, path)| (files.limit, path));
        assert_eq!(path("0::/user.slice/a:b"), Some(("memory.max", "/user.slice/a:b")));
        assert_eq!(path("4:cpu,memory:/job"), Some(("memory.limit_in_bytes", "/job")));
        assert_eq!(path("3:cpuset:/job"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn there_is_some_room_on_this_machine() {
        assert!(free_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
