//! placeholder
#[test]
fn x(){ println!("{:?}", unguide::simt::Simt::kernel("add_f16")); }
