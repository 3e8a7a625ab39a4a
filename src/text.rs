//! Prompts to token ids, exactly as transformers' CLIPTokenizer does.
//!
//! The vocabulary and the merges come from `tokenizer.json`, or from `vocab.json` and `merges.txt`;
//! the steps around them (NFC, white space, lower case, CLIP's split, bytes, merges with `</w>` at
//! the end of a word) are CLIP's and are built here, never taken from the file, so a file cannot ask
//! for other ones. The `tokenizers` crate runs them.
//!
//! Special tokens that are typed in a prompt count as special, as in transformers: `<|endoftext|>`
//! is one token, and where the padding token is `!` (Stable Diffusion 2) every `!` of a prompt is
//! that token. Whether their letter case matters is written in the tokenizer's configuration
//! (`normalized`), and it is followed.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, sequence, split};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::weights::{ModelFiles, parse_json, read_json};

/// CLIP's own files have 2 MB.
const VOCABULARY_CAP: u64 = 16 << 20;
/// Longer prompts are a mistake: a model reads some 77 tokens.
pub const MAX_PROMPT_BYTES: usize = 64 << 10;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A CLIP tokenizer.
pub struct Tokenizer {
    pipeline: tokenizers::Tokenizer,
    start: i32,
    end: i32,
    pad: i32,
    vocabulary: usize,
}

/// A prompt as a model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Start, the prompt, end, padding: as many as the limit says.
    pub ids: Vec<i32>,
    /// The end of the prompt that did not fit.
    pub dropped: Option<String>,
}

impl Tokenizer {
    /// Reads a tokenizer from a directory of `files` (`""` is their root).
    pub fn from_files(files: &ModelFiles, directory: &str) -> Result<Self> {
        let inside = |name: &str| match directory {
            "" => name.to_owned(),
            _ => format!("{directory}/{name}"),
        };
        let (model, explicit) = if files.exists(&inside("tokenizer.json")) {
            read_tokenizer_json(files, &inside("tokenizer.json"))?
        } else {
            (read_vocab_and_merges(files, &inside("vocab.json"), &inside("merges.txt"))?, Vec::new())
        };
        let config = inside("tokenizer_config.json");
        let config: Map<String, Value> =
            if files.exists(&config) { read_json(files, &config)? } else { Map::new() };
        let special = Special::read(files, &config, explicit, &inside)?;

        let id = |token: &str| match model.vocabulary.get(token) {
            Some(&id) => Ok(id as i32),
            None => Err(model.refuse(files, token, "a token of the vocabulary", "none".to_owned())),
        };
        let (start, end, pad) = (id(&special.start)?, id(&special.end)?, id(&special.pad)?);
        for token in &special.tokens {
            id(&token.content)?;
        }
        let vocabulary = model.vocabulary.len();
        let path = files.path(&model.file);
        let pipeline = pipeline(model, &special)
            .map_err(|e| Error::input(path, format!("no tokenizer can be made of it: {e}")))?;
        Ok(Self { pipeline, start, end, pad, vocabulary })
    }

    /// Number of ids; a text encoder needs at least as many embeddings.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Encodes a text as exactly `limit` ids. What does not fit is cut off before the end token.
    pub fn encode(&self, text: &str, limit: usize) -> Result<Encoded> {
        if limit < 2 {
            return Err(Error::Bug(format!("a limit of {limit} tokens leaves no room for start and end")));
        }
        if text.len() > MAX_PROMPT_BYTES {
            let problem = format!("it has {} bytes; at most {MAX_PROMPT_BYTES} are accepted", text.len());
            return Err(Error::usage("prompt", problem));
        }
        let encoding = self
            .pipeline
            .encode(text, false)
            .map_err(|e| Error::usage("prompt", format!("it cannot be tokenized: {e}")))?;
        let room = limit - 2;
        let tokens = encoding.get_ids().iter().map(|&id| id as i32).take(room);
        let mut ids: Vec<i32> = std::iter::once(self.start).chain(tokens).collect();
        ids.push(self.end);
        ids.resize(limit, self.pad);
        let dropped = encoding.get_offsets().get(room).map(|&(from, _)| tail(text, from));
        Ok(Encoded { ids, dropped })
    }
}

/// The text from a byte on, which may lie inside a character; without white space around it.
fn tail(text: &str, from: usize) -> String {
    let from = (0..=from.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[from..].trim().to_owned()
}

/// Vocabulary and merges, checked, and the file that they are from.
struct Model {
    file: String,
    vocabulary: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
}

impl Model {
    /// Checks what the crate or a text encoder would stumble over: ids that are not 0..n, merges
    /// of unknown tokens.
    fn new(
        files: &ModelFiles,
        file: &str,
        vocabulary: BTreeMap<String, u32>,
        merges_file: &str,
        merges: Vec<(String, String)>,
    ) -> Result<Self> {
        let model = Self { file: file.to_owned(), vocabulary, merges };
        let count = model.vocabulary.len();
        let mut taken = HashSet::with_capacity(count);
        for (token, &id) in &model.vocabulary {
            if id as usize >= count {
                return Err(model.refuse(files, token, &format!("an id below {count}"), id.to_string()));
            }
            if !taken.insert(id) {
                return Err(model.refuse(files, token, "an id of its own", format!("{id} twice")));
            }
        }
        if !model.vocabulary.contains_key(END) {
            return Err(model.refuse(files, END, "a token of the vocabulary", "none".to_owned()));
        }
        for (i, (left, right)) in model.merges.iter().enumerate() {
            let merged = format!("{left}{right}");
            let parts = [left, right, &merged];
            if let Some(unknown) = parts.into_iter().find(|part| !model.vocabulary.contains_key(*part)) {
                let found = format!("`{}`", unknown.escape_debug());
                return Err(Error::Config {
                    path: files.path(merges_file),
                    field: format!("merge {}", i + 1),
                    expected: "tokens of the vocabulary".to_owned(),
                    found,
                });
            }
        }
        Ok(model)
    }

    fn refuse(&self, files: &ModelFiles, token: &str, expected: &str, found: String) -> Error {
        let field = token.escape_debug().to_string();
        Error::Config { path: files.path(&self.file), field, expected: expected.to_owned(), found }
    }
}

#[derive(Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<NamedToken>,
    normalizer: Value,
    pre_tokenizer: Value,
    model: ModelJson,
}

#[derive(Deserialize)]
struct ModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
    end_of_word_suffix: Option<String>,
}

/// A merge as written by newer or by older versions.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

fn read_tokenizer_json(files: &ModelFiles, file: &str) -> Result<(Model, Vec<NamedToken>)> {
    let text = files.read_text(file, VOCABULARY_CAP)?;
    let json: TokenizerJson = parse_json(files, file, &text)?;
    let refuse = |field: &str, expected: &str, found: String| Error::Config {
        path: files.path(file),
        field: field.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    if json.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(refuse("model.type", "BPE", json.model.kind.unwrap_or_default()));
    }
    if json.model.end_of_word_suffix.as_deref() != Some(WORD_END) {
        let found = format!("{:?}", json.model.end_of_word_suffix);
        return Err(refuse("model.end_of_word_suffix", WORD_END, found));
    }
    // Not taken over, but a tokenizer with other steps is not CLIP's and would mean other ids.
    let types = |list: &Value, inner: &str| -> Vec<String> {
        let items =
            list.get(inner).and_then(Value::as_array).map_or(std::slice::from_ref(list), Vec::as_slice);
        items.iter().filter_map(|item| Some(item.get("type")?.as_str()?.to_owned())).collect()
    };
    let steps = types(&json.normalizer, "normalizers");
    if steps != ["NFC", "Replace", "Lowercase"] {
        return Err(refuse("normalizer", "NFC, Replace, Lowercase as in CLIP", steps.join(", ")));
    }
    let steps = types(&json.pre_tokenizer, "pretokenizers");
    let pattern = json.pre_tokenizer.pointer("/pretokenizers/0/pattern/Regex").and_then(Value::as_str);
    if steps != ["Split", "ByteLevel"] || pattern != Some(WORDS) {
        let found = format!("{} with pattern {}", steps.join(", "), pattern.unwrap_or("(none)"));
        return Err(refuse("pre_tokenizer", "CLIP's Split and ByteLevel", found));
    }
    let mut merges = Vec::with_capacity(json.model.merges.len());
    for (i, merge) in json.model.merges.into_iter().enumerate() {
        merges.push(match merge {
            Merge::Pair(left, right) => (left, right),
            Merge::Line(line) => match line.split_once(' ') {
                Some((left, right)) => (left.to_owned(), right.to_owned()),
                None => return Err(refuse(&format!("model.merges[{i}]"), "two tokens", line)),
            },
        });
    }
    Ok((Model::new(files, file, json.model.vocab, file, merges)?, json.added_tokens))
}

fn read_vocab_and_merges(files: &ModelFiles, vocab: &str, merges: &str) -> Result<Model> {
    let vocabulary = parse_json(files, vocab, &files.read_text(vocab, VOCABULARY_CAP)?)?;
    let text = files.read_text(merges, VOCABULARY_CAP)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut pairs = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || i == 0 && line.starts_with("#version") {
            continue;
        }
        let mut parts = line.split(' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(left), Some(right), None) if !left.is_empty() && !right.is_empty() => {
                pairs.push((left.to_owned(), right.to_owned()));
            }
            _ => {
                let field = format!("line {}", i + 1);
                let expected = "two tokens and a space between them".to_owned();
                let found = format!("`{}`", line.chars().take(40).collect::<String>().escape_debug());
                return Err(Error::Config { path: files.path(merges), field, expected, found });
            }
        }
    }
    if pairs.is_empty() {
        return Err(Error::input(files.path(merges), "it holds no merges"));
    }
    Model::new(files, vocab, vocabulary, merges, pairs)
}

/// A special token with the flags that say how it is recognised in a text.
#[derive(Clone, Debug, Deserialize)]
struct NamedToken {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

impl NamedToken {
    fn plain(content: &str) -> Self {
        let content = content.to_owned();
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: false }
    }
}

struct Special {
    start: String,
    end: String,
    pad: String,
    unknown: String,
    tokens: Vec<NamedToken>,
}

impl Special {
    /// Gathers the special tokens where transformers does: listed ones (`tokenizer.json` or
    /// `added_tokens_decoder`) go first; a named one is taken from `tokenizer_config.json`, or from
    /// `special_tokens_map.json` if nothing is listed there. Of equal names the later flags count.
    fn read(
        files: &ModelFiles,
        config: &Map<String, Value>,
        mut tokens: Vec<NamedToken>,
        inside: &impl Fn(&str) -> String,
    ) -> Result<Self> {
        let config_file = inside("tokenizer_config.json");
        let map_file = inside("special_tokens_map.json");
        let mut named: BTreeMap<&str, NamedToken> = BTreeMap::new();
        let listed = config.get("added_tokens_decoder").and_then(Value::as_object);
        let map: Map<String, Value> = match listed {
            None if files.exists(&map_file) => read_json(files, &map_file)?,
            _ => Map::new(),
        };
        if let Some(listed) = listed {
            tokens.clear();
            for (id, value) in listed {
                tokens.push(token(files, &config_file, &format!("added_tokens_decoder.{id}"), value)?);
            }
        }
        for (name, default) in [(BOS, START), (EOS, END), (UNK, END), (PAD, END)] {
            let value = match (map.get(name), config.get(name)) {
                (Some(value), _) if !value.is_null() => token(files, &map_file, name, value)?,
                (_, Some(value)) if !value.is_null() => token(files, &config_file, name, value)?,
                _ => NamedToken::plain(default),
            };
            named.insert(name, value);
        }
        let content = |name: &str| named[name].content.clone();
        let (start, end, unknown, pad) = (content(BOS), content(EOS), content(UNK), content(PAD));
        let listed = tokens.len();
        for name in [BOS, EOS, UNK, PAD] {
            let token = named[name].clone();
            match tokens.iter().position(|other| other.content == token.content) {
                Some(at) if at < listed => {}
                Some(at) => tokens[at] = token,
                None => tokens.push(token),
            }
        }
        Ok(Self { start, end, pad, unknown, tokens })
    }
}

const BOS: &str = "bos_token";
const EOS: &str = "eos_token";
const UNK: &str = "unk_token";
const PAD: &str = "pad_token";

/// A special token written as a string or as an object with flags.
fn token(files: &ModelFiles, file: &str, field: &str, value: &Value) -> Result<NamedToken> {
    let parsed = match value {
        Value::String(content) => Some(NamedToken::plain(content)),
        other => NamedToken::deserialize(other).ok(),
    };
    parsed.filter(|token| !token.content.is_empty()).ok_or_else(|| Error::Config {
        path: files.path(file),
        field: field.to_owned(),
        expected: "a token".to_owned(),
        found: value.to_string(),
    })
}

fn pipeline(model: Model, special: &Special) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocabulary: tokenizers::models::bpe::Vocab = model.vocabulary.into_iter().collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, model.merges)
        .unk_token(special.unknown.clone())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(WORD_END.to_owned())
        .build()?;
    let mut pipeline = tokenizers::Tokenizer::new(bpe);
    let spaces = Replace::new(normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()), " ")?;
    pipeline.with_normalizer(Some(normalizers::Sequence::new(vec![
        NFC.into(),
        spaces.into(),
        Lowercase.into(),
    ])))?;
    let words = split::SplitPattern::Regex(WORDS.to_owned());
    let words = split::Split::new(words, SplitDelimiterBehavior::Removed, true)?;
    let bytes = ByteLevel::new(false, true, true);
    pipeline.with_pre_tokenizer(Some(sequence::Sequence::new(vec![words.into(), bytes.into()])));
    let tokens = special.tokens.iter().map(|token| {
        AddedToken::from(token.content.clone(), true)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized)
    });
    pipeline.add_special_tokens(tokens)?;
    Ok(pipeline)
}
