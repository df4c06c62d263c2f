//! Counters that explain themselves: an enum whose every variant has a name and one sentence.

/// Declares such an enum: `Variant "name_in_counters" "What it means."` a line.
macro_rules! counters {
    ($(#[$doc:meta])* pub enum $kind:ident; $($name:ident $text:literal $sentence:literal)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum $kind { $(#[doc = $sentence] $name),* }

        impl $kind {
            /// How many there are.
            pub const COUNT: usize = [$(Self::$name),*].len();
            /// All of them, by number.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$name),*];

            /// The name in counters.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// What it means, in one sentence.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence),* }
            }
        }
    };
}
pub(crate) use counters;
