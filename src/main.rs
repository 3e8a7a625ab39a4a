//! The program: the command line plus the demo model, whose bytes only this file holds.

use std::process::ExitCode;

macro_rules! embedded {
    ($($file:literal),* $(,)?) => {
        &[$(($file, include_bytes!(concat!("../assets/emoji-sd/", $file)))),*]
    };
}

const DEMO: unguide::weights::EmbeddedFiles = embedded![
    "model_index.json",
    "clip/config.json",
    "clip/model.safetensors",
    "clip/preprocessor_config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

fn main() -> ExitCode {
    ExitCode::from(unguide::cli::main(DEMO))
}
