//! Pictures and their files: what is written can be read, and nothing is lost or half there.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::json;
use unguide::image::{Metadata, OutputPattern, Picture, Target, read_metadata, write_atomically};

fn picture() -> Picture {
    let values: Vec<f32> = (0..5 * 3 * 3).map(|i| i as f32 / 44.0).collect();
    Picture::from_unit(5, 3, &values).expect("finite")
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("readable");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("plain")).collect();
    names.sort();
    names
}

fn pattern(path: &Path) -> OutputPattern {
    OutputPattern::parse(path.as_os_str()).expect("a plain value")
}

#[test]
fn a_picture_keeps_its_pixels_and_texts() {
    let directory = directory();
    for prompt in ["a cat", "ein Kätzchen «50 %»", "猫 🐈", "tab\there", "", "nul\0inside"] {
        let metadata = Metadata {
            parameters: format!("{prompt}\nSteps: 50"),
            record: json!({"prompt": prompt, "seed": u64::MAX, "gamma": 0.1}),
        };
        let path = directory.path().join("a.png");
        let bytes = picture().to_png(Some(&metadata)).expect("encoded");
        write_atomically("--output", &path, true, &bytes).expect("written");
        let found = read_metadata(&path).expect("readable");
        assert_eq!(found.parameters.as_ref(), Some(&metadata.parameters));
        assert_eq!(found.record.as_ref(), Some(&metadata.record));

        let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
        let info = reader.next_frame(&mut pixels).expect("decoded");
        assert_eq!((info.width, info.height, info.color_type), (5, 3, png::ColorType::Rgb));
        assert_eq!(pixels, picture().pixels());
    }
}

#[test]
fn plain_prompts_are_text_that_every_viewer_reads() {
    let chunk = |parameters: &str| {
        let metadata = Metadata { parameters: parameters.to_owned(), record: json!({}) };
        let bytes = picture().to_png(Some(&metadata)).expect("encoded");
        let at = bytes.windows(10).position(|w| w == b"parameters").expect("a chunk");
        bytes[at - 4..at].to_vec()
    };
    assert_eq!(chunk("a cat\nSteps: 5, é"), b"tEXt");
    assert_eq!(chunk("猫"), b"iTXt");
}

#[test]
fn no_metadata_means_no_text_at_all() {
    let directory = directory();
    let path = directory.path().join("a.png");
    let bytes = picture().to_png(None).expect("encoded");
    assert!(!bytes.windows(4).any(|w| w == b"tEXt" || w == b"iTXt"));
    write_atomically("--output", &path, false, &bytes).expect("written");
    assert_eq!(read_metadata(&path).expect("readable"), Default::default());
}

#[test]
fn what_is_no_picture_of_ours_is_refused_when_read() {
    let directory = directory();
    let path = directory.path().join("a.png");
    let good = picture().to_png(None).expect("encoded");
    for bytes in [&b""[..], b"<html>", &good[..20]] {
        fs::write(&path, bytes).expect("written");
        assert_eq!(read_metadata(&path).expect_err("no picture").exit_code(), 3);
    }
    assert_eq!(read_metadata(&directory.path().join("b.png")).expect_err("missing").exit_code(), 6);
}

#[test]
fn a_file_is_replaced_only_if_asked_and_nothing_else_is_left_behind() {
    let directory = directory();
    let path = directory.path().join("a.png");
    write_atomically("--output", &path, false, b"one").expect("written");
    let error = write_atomically("--output", &path, false, b"two").expect_err("it exists");
    assert!(error.to_string().contains("--overwrite") && error.exit_code() == 2, "{error}");
    let trace = write_atomically("--trace", &path, false, b"two").expect_err("it exists").to_string();
    assert!(trace.starts_with("--trace: "), "{trace}");
    assert_eq!(fs::read(&path).expect("readable"), b"one");
    write_atomically("--output", &path, true, b"three").expect("replaced");
    assert_eq!(fs::read(&path).expect("readable"), b"three");
    assert_eq!(names(directory.path()), ["a.png"]);
}

#[cfg(unix)]
#[test]
fn a_file_has_the_permissions_of_an_ordinary_one() {
    use std::os::unix::fs::PermissionsExt;
    let directory = directory();
    let [ours, ordinary] = ["a.png", "b.png"].map(|name| directory.path().join(name));
    write_atomically("--output", &ours, false, b"1").expect("written");
    fs::write(&ordinary, b"1").expect("written");
    let [ours, ordinary] = [ours, ordinary].map(|p| fs::metadata(p).expect("there").permissions().mode());
    assert_eq!(ours, ordinary);
}

#[test]
fn each_picture_of_a_run_gets_its_own_file() {
    let directory = directory();
    let base = directory.path();
    let file = |name: &str| Target::File(base.join(name));
    let numbered = pattern(&base.join("p-%03d.png"));
    let targets = numbered.check(&[7, 8], false).expect("free");
    assert_eq!(targets, [file("p-000.png"), file("p-001.png")]);

    let auto = pattern(base);
    let targets = auto.check(&[7, 8], false).expect("free");
    assert_eq!(targets, [file("00000-7.png"), file("00001-8.png")]);
    targets[1].write(false, b"1").expect("written");
    fs::write(base.join("99999999999999999999-1.png"), b"").expect("written");
    assert_eq!(auto.check(&[9], false).expect("free"), [file("00002-9.png")]);

    let one = pattern(&base.join("a.png"));
    assert_eq!(one.check(&[1], false).expect("free"), [file("a.png")]);
    assert_eq!(one.check(&[1, 2], false).expect_err("two pictures").exit_code(), 2);
    assert_eq!(
        OutputPattern::parse(OsStr::new("-")).expect("stdout").check(&[1], false).expect("one").len(),
        1
    );
    assert!(OutputPattern::Stdout.check(&[1, 2], false).is_err());
    assert_eq!(names(base).len(), 2, "a check leaves nothing behind");
}

#[test]
fn what_cannot_be_written_is_known_before_anything_runs() {
    let directory = directory();
    let base = directory.path();
    fs::write(base.join("p-1.png"), b"1").expect("written");
    fs::create_dir(base.join("d.png")).expect("made");
    let check = |name: &str, overwrite| pattern(&base.join(name)).check(&[1, 2, 3], overwrite);
    assert_eq!(check("p-%d.png", false).expect_err("one exists").exit_code(), 2);
    assert_eq!(check("p-%d.png", true).expect("allowed").len(), 3);
    assert_eq!(check("missing/p-%d.png", false).expect_err("no directory").exit_code(), 6);
    assert_eq!(check("missing/", false).expect_err("no directory").exit_code(), 6);
    assert_eq!(check(&format!("{}-%d.png", "x".repeat(300)), false).expect_err("too long").exit_code(), 6);
    fs::write(base.join("file"), b"").expect("written");
    assert_eq!(check("file/p-%d.png", false).expect_err("not a directory").exit_code(), 6);
    assert_eq!(check("d.png/p-%d.png", false).expect("a directory like any other").len(), 3);
}

#[test]
fn a_value_that_names_no_picture_is_refused() {
    for (value, code) in
        [("", 2), ("a.jpg", 2), ("a", 2), ("a%s.png", 2), ("%d%d.png", 2), ("..", 0), (".png", 2)]
    {
        let parsed = OutputPattern::parse(OsStr::new(value));
        assert_eq!(parsed.err().map_or(0, |e| e.exit_code()), code, "{value}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn devices_are_never_replaced() {
    use std::os::unix::fs::symlink;
    let directory = directory();
    let path = directory.path().join("full.png");
    symlink("/dev/full", &path).expect("linked");
    for value in [Path::new("/dev/full"), &path] {
        assert_eq!(OutputPattern::parse(value.as_os_str()).expect_err("a device").exit_code(), 6);
    }
    symlink("nowhere", directory.path().join("dangling.png")).expect("linked");
    let dangling = pattern(&directory.path().join("dangling.png"));
    assert_eq!(dangling.check(&[1], false).expect_err("a link is there").exit_code(), 2);
}
