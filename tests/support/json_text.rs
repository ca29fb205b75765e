//! JSON text as property tests generate it: well-formed, in every spelling, and sometimes what PostgreSQL or a
//! limit refuses.

use proptest::prelude::*;

/// A string's contents: mostly plain, sometimes awkward.
pub fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[ !#-\\[\\]-~]{0,20}",
        1 => "[é€😀\u{7f}\u{ffff}]{1,3}",
        1 => "\\\\[\"\\\\/bfnrt]",
        1 => "\\\\u[0-9a-fA-F]{4}",
        1 => "\\\\ud[89ab][0-9a-f]{2}(\\\\ud[c-f][0-9a-f]{2})?",
        1 => Just("\\u0000".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// A number, sometimes at a limit or past it.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,6})?([eE][+-]?[0-9]{1,3})?",
        1 => "-?[1-9][0-9]{395,405}",
        1 => "0\\.[0-9]{395,405}e-?0{0,3}(400|401|39|1000)",
    ]
}

/// Any JSON value, with blanks here and there.
pub fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![string(), number(), Just("true".to_owned()), Just("false".into()), Just("null".into())];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let blank = "[ \n\t\r]{0,2}";
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..6), blank)
                .prop_map(|(items, blank)| format!("[{blank}{}{blank}]", items.join(&format!("{blank},")))),
            (prop::collection::vec((string(), inner), 0..6), blank).prop_map(|(members, blank)| {
                let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}{blank}:{value}")).collect();
                format!("{{{}{blank}}}", members.join(&format!(",{blank}")))
            }),
        ]
    })
}

/// An object.
pub fn object() -> impl Strategy<Value = String> {
    prop::collection::vec((string(), value()), 0..5).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        format!("{{{}}}", members.join(", "))
    })
}
