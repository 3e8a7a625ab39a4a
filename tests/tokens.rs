//! Token ids equal to transformers' CLIPTokenizer, from golden ids (`golden/make_tokens.py`).

use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};
use unguide::text::Tokenizer;
use unguide::weights::ModelFiles;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/emoji-sd/tokenizer");

fn golden() -> Map<String, Value> {
    let text = include_str!("golden/tokens.json");
    serde_json::from_str(text).expect("the golden file is JSON")
}

fn ids(value: &Value) -> Vec<i32> {
    serde_json::from_value(value.clone()).expect("a list of ids")
}

/// Compares every text of the golden file with one of its lists of ids.
fn check(tokenizer: &Tokenizer, list: &str) {
    let golden = golden();
    let texts = golden["texts"].as_array().expect("texts");
    let limit = golden[list]["limit"].as_u64().expect("a limit") as usize;
    let pad = golden[list]["pad"].as_i64().expect("a pad token") as i32;
    let rows = golden[list]["ids"].as_array().expect("ids");
    assert!(texts.len() >= 300 && rows.len() == texts.len());
    for (text, row) in texts.iter().zip(rows) {
        let text = text.as_str().expect("a text");
        let mut want = ids(row);
        want.resize(limit, pad);
        let got = tokenizer.encode(text, limit).expect("a text that can be encoded");
        assert_eq!(got.ids, want, "{list}: {text:?}");
    }
}

#[test]
fn the_demo_tokenizer_equals_transformers() {
    let files = ModelFiles::open(DEMO).expect("the demo's tokenizer");
    let tokenizer = Tokenizer::from_files(&files, "").expect("a tokenizer");
    assert_eq!(tokenizer.vocabulary(), 994);
    check(&tokenizer, "demo");
}

#[test]
fn vocab_and_merges_alone_are_enough() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(Path::new(DEMO).join(name), directory.path().join(name)).expect("copied");
    }
    let files = ModelFiles::open(directory.path()).expect("a directory");
    check(&Tokenizer::from_files(&files, "").expect("a tokenizer"), "demo_from_vocab");
}

/// The full vocabulary of CLIP is made from its list of merges.
#[test]
#[ignore = "takes CLIP's list of merges: UNGUIDE_TEST_CLIP_MERGES=bpe_simple_vocab_16e6.txt.gz"]
fn the_vocabulary_of_clip_equals_transformers() {
    let packed =
        std::env::var_os("UNGUIDE_TEST_CLIP_MERGES").expect("UNGUIDE_TEST_CLIP_MERGES names the file");
    let unpacked = Command::new("gzip").arg("-dc").arg(&packed).output().expect("gzip");
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let text = unpacked.stdout;
    let text = String::from_utf8(text).expect("CLIP's merges are UTF-8");
    let merges: Vec<&str> = text.split('\n').skip(1).take(48_894).collect();

    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: String| {
        std::fs::write(directory.path().join(name), text).expect("written");
    };
    let mut tokens = byte_characters();
    tokens.extend(byte_characters().into_iter().map(|letter| format!("{letter}</w>")));
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()]);
    let vocabulary: Map<String, Value> =
        tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    assert_eq!(vocabulary.len(), 49_408);
    write("vocab.json", Value::Object(vocabulary).to_string());
    write("merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n")));

    let tokenizer = || {
        let files = ModelFiles::open(directory.path()).expect("a directory");
        Tokenizer::from_files(&files, "").expect("a tokenizer")
    };
    check(&tokenizer(), "bare");
    for (list, pad) in [("sd1", "<|endoftext|>"), ("sd2", "!")] {
        let flags = |content: &str| json!({ "content": content, "normalized": true, "lstrip": false });
        let (start, end) = (flags("<|startoftext|>"), flags("<|endoftext|>"));
        let map = json!({ "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad });
        write("special_tokens_map.json", map.to_string());
        write("tokenizer_config.json", json!({ "model_max_length": 77 }).to_string());
        check(&tokenizer(), list);
    }
}

#[test]
fn the_end_of_a_long_prompt_is_dropped_and_told() {
    let files = ModelFiles::open(DEMO).expect("the demo's tokenizer");
    let tokenizer = Tokenizer::from_files(&files, "").expect("a tokenizer");
    // As in CLIP's own vocabulary the end is the last token, and here it is what texts are filled up with, too.
    let end = tokenizer.vocabulary() as i32 - 1;
    let real_tokens = |ids: &[i32]| ids.iter().position(|&id| id == end).expect("an end") + 1;
    let fits = tokenizer.encode("a red heart", 24).expect("encoded");
    assert_eq!(fits.dropped, None);
    assert_eq!(fits.ids.len(), 24);
    assert!((4..24).contains(&real_tokens(&fits.ids)));

    let text = "a a a é 漢 a";
    let whole = tokenizer.encode(text, 24).expect("encoded");
    assert_eq!(whole.dropped, None);
    // Start, three words, end.
    let cut = tokenizer.encode(text, 5).expect("encoded");
    assert_eq!(cut.dropped.as_deref(), Some("é 漢 a"));
    assert_eq!((cut.ids.len(), real_tokens(&cut.ids)), (5, 5));
    // A cut inside the bytes of a character shows the whole character, and no cut panics.
    for limit in 2..real_tokens(&whole.ids) {
        let cut = tokenizer.encode(text, limit).expect("encoded");
        assert!(text.ends_with(&cut.dropped.expect("something was dropped")));
    }
}

#[test]
fn a_prompt_of_more_than_64_kib_is_a_usage_error() {
    let files = ModelFiles::open(DEMO).expect("the demo's tokenizer");
    let tokenizer = Tokenizer::from_files(&files, "").expect("a tokenizer");
    let error = tokenizer.encode(&"a ".repeat(40_000), 24).expect_err("too long");
    assert_eq!(error.exit_code(), 2);
    let floods = ["\u{301}".repeat(30_000), "(".repeat(60_000), "a".repeat(65_536), "'".repeat(65_536)];
    for flood in floods {
        assert!(tokenizer.encode(&flood, 24).expect("odd but legal").dropped.is_some());
    }
}

/// The characters that stand for the 256 bytes: printable ones for themselves, the rest from 256 on.
fn byte_characters() -> Vec<String> {
    let kept: Vec<u32> = (33..127).chain(161..173).chain(174..256).collect();
    let rest = 256 - kept.len() as u32;
    let all = kept.into_iter().chain(256..256 + rest);
    all.map(|code| char::from_u32(code).expect("a character below 512").to_string()).collect()
}
