//! Tables of a library's functions, filled at once or not at all.

/// A struct with a field for each function of a library, and `load`, whose error names the first that is missing.
/// All functions answer with an integer, 0 for success.
macro_rules! table {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($field:ident: $symbol:literal($($argument:ty),* $(,)?),)*
        }
    ) => {
        $(#[$doc])*
        // SAFETY: whoever calls a function keeps what its documentation asks for; a field says no more than a type.
        pub struct $name { $(pub $field: unsafe extern "C" fn($($argument),*) -> std::ffi::c_int,)* }

        impl $name {
            fn load(library: &'static libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($field: {
                        // SAFETY: the library's own name and signature of that function, by its public header.
                        let symbol = unsafe {
                            // SAFETY: as above; the type is the field's.
                            library.get::<unsafe extern "C" fn($($argument),*) -> std::ffi::c_int>($symbol.as_bytes())
                        };
                        *symbol.map_err(|_| $symbol)?
                    },)*
                })
            }
        }
    };
}

pub(super) use table;
