//! What an OCI runtime of the host gets instead of a plan: a bundle's `config.json`, a `process.json`. Who the process is
//! stands in the container's own files, which only the shim sees: such places are holes that it fills.

use std::path::Path;

use berth_launch::v1::{self as launch, piece};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{Request, capabilities, spec};
use crate::{Error, Kind, Result};

const OP: &str = "write for OCI runtime";
/// Where the shim mounts images, below the container's directory.
const VOLUMES: &str = "volumes";

/// The work of a container's plan, given to the OCI runtime at `program`.
///
/// # Errors
/// `Invalid` names what a document can't say, or such runtimes don't do for us.
pub fn by_runtime(document: &Spec, request: &Request<'_>, program: &Path) -> Result<launch::Runtime> {
    let place = request.place;
    if place.pod_user.is_some() {
        return Err(Error::invalid(OP, "userns_options", "only the built-in handler has user namespaces"));
    }
    let mut all = serde_json::to_value(document).map_err(odd)?;
    let holes = Holes(&place.container_id);
    let process = &mut all["process"];
    process["user"] = holes.user();
    process["env"] = holes.environment(&spec::environment(request)?)?;
    hold(&mut process["capabilities"], request.host.held_capabilities);
    process["oomScoreAdj"] = json!(score(process, request.host.lowest_oom_score));
    mounts(&mut all["mounts"], &place.dir);
    if !request.host.cgroup_v2
        && let Some(resources) = all["linux"]["resources"].as_object_mut()
    {
        // There is no such file on v1.
        resources.remove("unified");
    }
    if !request.host.counts_huge_pages
        && let Some(limits) = all.pointer_mut("/linux/resources/hugepageLimits").and_then(Value::as_array_mut)
    {
        // A kubelet sends noughts for every size to whoever asks for none.
        limits.retain(|limit| limit["limit"] != 0);
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(launch::Runtime {
        program: text(program),
        root: text(&place.dir.join("runtime")),
        document: holes.pieces(&all.to_string()),
        args: Vec::new(),
    })
}

/// An exec of a container that such a runtime keeps: `process.json`, and what the shim still has to know of it.
pub fn exec_by_runtime(
    document: &Spec,
    process: launch::Process,
    exec_id: &str,
    held_capabilities: Option<u64>,
) -> Result<(launch::Process, Vec<launch::Piece>)> {
    let holes = Holes(exec_id);
    let mut all = serde_json::to_value(document.process()).map_err(odd)?;
    all["terminal"] = json!(process.tty);
    all["user"] = holes.user();
    all["args"] = json!(process.args.iter().map(|arg| utf8("args", arg)).collect::<Result<Vec<_>>>()?);
    all["env"] = holes.environment(&process.env)?;
    all["cwd"] = json!(utf8("cwd", &process.cwd)?);
    if let Some(sets) = &process.capabilities {
        let names = super::capability_names(sets.bounding);
        all["capabilities"] = json!({"bounding": names, "effective": names, "permitted": names});
    }
    hold(&mut all["capabilities"], held_capabilities);
    let kept = launch::Process {
        user: process.user,
        tty: process.tty,
        rows: process.rows,
        columns: process.columns,
        ..launch::Process::default()
    };
    Ok((kept, holes.pieces(&all.to_string())))
}

/// Strings that stand for holes until the document is cut up. The id was drawn after the client had said all it says.
struct Holes<'a>(&'a str);

impl Holes<'_> {
    const KINDS: [(&'static str, piece::Hole); 4] = [
        ("uid", piece::Hole::Uid),
        ("gid", piece::Hole::Gid),
        ("groups", piece::Hole::Groups),
        ("home", piece::Hole::Home),
    ];

    fn mark(&self, kind: &str) -> String {
        format!("{}@hole:{kind}", self.0)
    }

    fn user(&self) -> Value {
        json!({"uid": self.mark("uid"), "gid": self.mark("gid"), "additionalGids": [self.mark("groups")]})
    }

    /// With a hole for HOME where nobody has said it.
    fn environment(&self, env: &[Vec<u8>]) -> Result<Value> {
        let mut all = env.iter().map(|var| utf8("envs", var)).collect::<Result<Vec<_>>>()?;
        if !all.iter().any(|var| var.starts_with("HOME=")) {
            all.push(self.mark("home"));
        }
        Ok(json!(all))
    }

    fn pieces(&self, text: &str) -> Vec<launch::Piece> {
        let start = format!("\"{}", self.mark(""));
        let (mut pieces, mut rest) = (Vec::new(), text);
        let mut push = |piece| pieces.push(launch::Piece { piece: Some(piece) });
        while let Some((before, after)) = rest.split_once(start.as_str()) {
            push(piece::Piece::Text(before.as_bytes().to_vec()));
            let (kind, after) = after.split_once('"').unwrap_or((after, ""));
            let hole = Self::KINDS.iter().find(|(name, _)| *name == kind).map(|(_, hole)| *hole);
            push(piece::Piece::Hole(hole.unwrap_or_default().into()));
            rest = after;
        }
        push(piece::Piece::Text(rest.as_bytes().to_vec()));
        pieces
    }
}

/// Images are mounted by the shim: what is left is a bind of theirs.
fn mounts(mounts: &mut Value, dir: &Path) {
    for (n, mount) in mounts.as_array_mut().into_iter().flatten().enumerate() {
        let options: Vec<String> = serde_json::from_value(mount["options"].take()).unwrap_or_default();
        let is_image =
            mount["type"] == "overlay" && options.iter().any(|option| option.starts_with("x-berth."));
        let kept = options.into_iter().filter(|option| !option.starts_with("x-berth."));
        mount["options"] = match is_image {
            false => json!(kept.collect::<Vec<_>>()),
            true => {
                mount["type"] = json!("bind");
                mount["source"] = json!(dir.join(VOLUMES).join(n.to_string()));
                let kept = kept.filter(|option| !option.starts_with("lowerdir=") && option != "rro");
                json!(
                    ["bind", "private", "ro"].map(str::to_owned).into_iter().chain(kept).collect::<Vec<_>>()
                )
            }
        };
    }
}

/// Runtimes fail at a capability that nobody here has to give; without it is as near as one gets.
fn hold(sets: &mut Value, held: Option<u64>) {
    let Some(held) = held else { return };
    for set in sets.as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        if let Some(names) = set.as_array_mut() {
            names.retain(|name| {
                let bit = capabilities::bit(name.as_str().unwrap_or_default());
                bit.is_ok_and(|bit| bit & held != 0)
            });
        }
    }
}

/// Runtimes fail where the kernel refuses a score; we go as low as we may, as the shim does.
fn score(process: &Value, lowest: Option<i32>) -> i64 {
    let asked = process["oomScoreAdj"].as_i64().unwrap_or(0);
    lowest.map_or(asked, |lowest| asked.max(lowest.into()))
}

fn utf8(field: &str, bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        Error::invalid(OP, field, "it is not UTF-8, and JSON has to be")
            .hint("give it in another encoding, or take the built-in handler")
    })
}

fn odd(error: serde_json::Error) -> Error {
    Error::new(Kind::Internal, OP, "document").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_cut_at_its_holes_and_nowhere_else() {
        let holes = Holes("abc");
        let document = json!({"a": "abc@hole", "user": holes.user(), "z": "x abc@hole:uid"});
        let shown: Vec<String> = holes
            .pieces(&document.to_string())
            .into_iter()
            .map(|piece| match piece.piece {
                Some(piece::Piece::Text(text)) => String::from_utf8(text).unwrap(),
                Some(piece::Piece::Hole(hole)) => format!("<{hole}>"),
                None => String::new(),
            })
            .collect();
        let expected =
            r#"{"a":"abc@hole","user":{"additionalGids":[<3>],"gid":<2>,"uid":<1>},"z":"x abc@hole:uid"}"#;
        assert_eq!(shown.concat(), expected);
    }

    #[test]
    fn an_images_mount_becomes_a_bind_of_what_the_shim_has_mounted() {
        let mut list = json!([
            {"destination": "/a", "type": "bind", "source": "/h", "options": ["rbind", "x-berth.create"]},
            {"destination": "/m", "type": "overlay", "source": "image",
                "options": ["rro", "nosuid", "lowerdir=/l:/e", "x-berth.sub-path=d"]},
        ]);
        mounts(&mut list, Path::new("/c"));
        assert_eq!(list[0]["options"], json!(["rbind"]));
        let expected = json!({"destination": "/m", "type": "bind", "source": "/c/volumes/1",
            "options": ["bind", "private", "ro", "nosuid"]});
        assert_eq!(list[1], expected);
    }

    #[test]
    fn only_what_is_held_can_be_given() {
        let sets = || json!({"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "ambient": []});
        let mut all = sets();
        hold(&mut all, None);
        assert_eq!(all, sets());
        hold(&mut all, Some(!(1 << 24)));
        assert_eq!(all, json!({"bounding": ["CAP_CHOWN"], "ambient": []}));
    }

    #[test]
    fn a_score_is_no_lower_than_the_host_lets_it_be() {
        let process = json!({"oomScoreAdj": -998});
        assert_eq!(score(&process, None), -998);
        assert_eq!(score(&process, Some(0)), 0);
        assert_eq!(score(&json!({"oomScoreAdj": 500}), Some(0)), 500);
    }
}
