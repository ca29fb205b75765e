//! Documents at the edges of what PostgreSQL's jsonb, RFC 8259 and our limits accept, as values of `payload`.
//!
//! Shared by the differential tests, and by the test that asks PostgreSQL's own cast about every one of them.

/// `(name, text of the payload, accepted)`. Every text that is not accepted is refused by PostgreSQL's
/// `'…'::jsonb` too, except where the name begins with `limit:` (our limit is the tighter one) or `object:` (jsonb
/// takes any value, `payload` takes objects).
pub fn documents() -> Vec<(&'static str, Vec<u8>, bool)> {
    let mut documents = Vec::new();
    documents.extend(numbers());
    documents.extend(strings());
    documents.extend(structure());
    documents.extend(limits());
    documents
}

fn all(accepted: bool, documents: &[(&'static str, &[u8])]) -> Vec<(&'static str, Vec<u8>, bool)> {
    documents.iter().map(|&(name, text)| (name, text.to_vec(), accepted)).collect()
}

fn numbers() -> Vec<(&'static str, Vec<u8>, bool)> {
    let good: &[(&str, &[u8])] = &[
        ("zero", br#"{"a":0}"#),
        ("minus zero", br#"{"a":-0}"#),
        ("minus zero point zero", br#"{"a":-0.0}"#),
        ("zero with exponent", br#"{"a":0e0}"#),
        ("25-digit integer", br#"{"a":1234567890123456789012345}"#),
        ("2^53 + 1", br#"{"a":9007199254740993}"#),
        ("2^64", br#"{"a":18446744073709551616}"#),
        ("more decimals than a double has", br#"{"a":0.1000000000000000055511151231257827}"#),
        ("trailing zeros", br#"{"a":1.500}"#),
        ("1e400", br#"{"a":1e400}"#),
        ("1E+400", br#"{"a":1E+400}"#),
        ("1e-400", br#"{"a":1e-400}"#),
        ("-1.5e-10", br#"{"a":-1.5e-10}"#),
        ("exponent with leading zeros", br#"{"a":1e0000000000000000000000007}"#),
        ("numbers before every closer", br#"{"a":[1,2.5,[3e1]],"b":{"c":-4}}"#),
    ];
    let bad: &[(&str, &[u8])] = &[
        ("leading zero", br#"{"a":01}"#),
        ("minus leading zero", br#"{"a":-01}"#),
        ("double zero", br#"{"a":00}"#),
        ("plus", br#"{"a":+1}"#),
        ("point first", br#"{"a":.5}"#),
        ("point last", br#"{"a":1.}"#),
        ("point then exponent", br#"{"a":1.e5}"#),
        ("minus alone", br#"{"a":-}"#),
        ("two minuses", br#"{"a":--1}"#),
        ("exponent without digits", br#"{"a":1e}"#),
        ("exponent sign without digits", br#"{"a":1e+}"#),
        ("exponent with point", br#"{"a":1e1.5}"#),
        ("two points", br#"{"a":1.2.3}"#),
        ("NaN", br#"{"a":NaN}"#),
        ("Infinity", br#"{"a":Infinity}"#),
        ("minus Infinity", br#"{"a":-Infinity}"#),
        ("hexadecimal", br#"{"a":0x10}"#),
        ("underscores", br#"{"a":1_000}"#),
        ("letter after number", br#"{"a":1a}"#),
        ("full-width digit", "{\"a\":\u{ff11}}".as_bytes()),
    ];
    [all(true, good), all(false, bad)].concat()
}

fn strings() -> Vec<(&'static str, Vec<u8>, bool)> {
    let good: &[(&str, &[u8])] = &[
        ("every short escape", br#"{"a":"\"\\\/\b\f\n\r\t"}"#),
        ("unicode escape", br#"{"a":"\u0041\u00e9\u20AC"}"#),
        ("surrogate pair", br#"{"a":"\ud83d\ude00"}"#),
        ("surrogate pair in upper case", br#"{"a":"\uD83D\uDE00"}"#),
        ("first and last pair", br#"{"a":"\ud800\udc00\udbff\udfff"}"#),
        ("u0001", br#"{"a":"\u0001"}"#),
        ("escaped backslash then u0000", br#"{"a":"\\u0000"}"#),
        ("escaped backslash then ud800", br#"{"a":"\\ud800"}"#),
        ("noncharacters", br#"{"a":"\uffff\ufffe\ufdd0"}"#),
        ("around the surrogates", br#"{"a":"\ud7ff\ue000"}"#),
        ("raw delete", b"{\"a\":\"\x7f\"}"),
        (
            "raw two, three and four byte characters",
            "{\"é\":\"€😀\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}\"}".as_bytes(),
        ),
        ("raw line separators", "{\"a\":\"\u{2028}\u{2029}\u{85}\"}".as_bytes()),
        ("byte order mark inside a string", "{\"a\":\"\u{feff}\"}".as_bytes()),
        ("empty key", br#"{"":1}"#),
        ("key twice", br#"{"a":1,"a":2}"#),
        ("key twice by escape", br#"{"a":1,"\u0061":2}"#),
        ("escape at 63, 64, 65", br#"{"a":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n\n\n\n\\"}"#),
    ];
    let bad: &[(&str, &[u8])] = &[
        ("u0000", br#"{"a":"\u0000"}"#),
        ("u0000 in a key", br#"{"a\u0000b":1}"#),
        ("u0000 deep inside", br#"{"a":[{"b":["x\u0000"]}]}"#),
        ("lone high surrogate", br#"{"a":"\ud800"}"#),
        ("lone low surrogate", br#"{"a":"\udc00"}"#),
        ("lone surrogate in a key", br#"{"\ud800":1}"#),
        ("two high surrogates", br#"{"a":"\ud800\ud800"}"#),
        ("low then high surrogate", br#"{"a":"\udc00\ud800"}"#),
        ("high, high, low", br#"{"a":"\ud83d\ud83d\ude00"}"#),
        ("pair then low", br#"{"a":"\ud83d\ude00\ude00"}"#),
        ("high surrogate then text", br#"{"a":"\ud800x"}"#),
        ("high surrogate then escape", br#"{"a":"\ud800\n"}"#),
        ("high surrogate then BMP escape", br#"{"a":"\ud800\u0041"}"#),
        ("high surrogate then backslash", br#"{"a":"\ud800\\udc00"}"#),
        ("unknown escape", br#"{"a":"\x41"}"#),
        ("single quote escape", br#"{"a":"\'"}"#),
        ("capital U escape", br#"{"a":"\U0041"}"#),
        ("escaped zero", br#"{"a":"\0"}"#),
        ("three hex digits", br#"{"a":"\u041"}"#),
        ("not hex", br#"{"a":"\u00g0"}"#),
        ("sign in hex", br#"{"a":"\u+041"}"#),
        ("surrogate then bad hex", br#"{"a":"\ud800\uZZZZ"}"#),
        ("raw newline", b"{\"a\":\"\n\"}"),
        ("raw tab", b"{\"a\":\"\t\"}"),
        ("raw unit separator", b"{\"a\":\"\x1f\"}"),
        ("raw control in a key", b"{\"a\x01\":1}"),
        ("single quotes", b"{'a':1}"),
        ("overlong slash", b"{\"a\":\"\xc0\xaf\"}"),
        ("surrogate as UTF-8", b"{\"a\":\"\xed\xa0\x80\"}"),
        ("beyond U+10FFFF", b"{\"a\":\"\xf4\x90\x80\x80\"}"),
        ("lone continuation byte", b"{\"a\":\"\x80\"}"),
        ("cut character", b"{\"a\":\"\xe2\x82\"}"),
        ("Latin-1", b"{\"a\":\"caf\xe9\"}"),
        ("0xFF", b"{\"a\":\"\xff\"}"),
    ];
    [all(true, good), all(false, bad)].concat()
}

fn structure() -> Vec<(&'static str, Vec<u8>, bool)> {
    let good: &[(&str, &[u8])] = &[
        ("empty object", b"{}"),
        ("whitespace everywhere", b"{ \t\r\n\"a\" \n:\t[ 1 , 2 ,\r{ } , [ ] ] }"),
        ("literals", br#"{"a":[true,false,null]}"#),
        ("empty containers", br#"{"a":[[],{},[[]],[{}]]}"#),
        ("key that looks like a closer", br#"{"}":"]","{":"["}"#),
    ];
    let bad: &[(&str, &[u8])] = &[
        ("object: array", b"[1]"),
        ("object: string", b"\"{}\""),
        ("object: number", b"1"),
        ("object: null", b"null"),
        ("object: true", b"true"),
        ("nothing", b""),
        ("trailing comma in object", br#"{"a":1,}"#),
        ("trailing comma in array", br#"{"a":[1,]}"#),
        ("leading comma", br#"{,"a":1}"#),
        ("two commas", br#"{"a":[1,,2]}"#),
        ("missing comma", br#"{"a":1 "b":2}"#),
        ("missing colon", br#"{"a" 1}"#),
        ("two colons", br#"{"a"::1}"#),
        ("missing value", br#"{"a":}"#),
        ("key without quotes", b"{a:1}"),
        ("number as key", b"{1:1}"),
        ("null as key", b"{null:1}"),
        ("wrong closer", br#"{"a":[1}]"#),
        ("comment", br#"{"a":1/*c*/}"#),
        ("line comment", b"{\"a\":1//c\n}"),
        ("misspelt true", br#"{"a":tru}"#),
        ("capital True", br#"{"a":True}"#),
        ("truee", br#"{"a":truee}"#),
        ("undefined", br#"{"a":undefined}"#),
        ("form feed as whitespace", b"{\x0c}"),
        ("vertical tab as whitespace", b"{\x0b}"),
        ("no-break space as whitespace", "{\u{a0}}".as_bytes()),
        ("raw NUL as whitespace", b"{\0}"),
    ];
    [all(true, good), all(false, bad)].concat()
}

fn limits() -> Vec<(&'static str, Vec<u8>, bool)> {
    let nested = |open: &str, close: &str, levels: usize| {
        format!("{{\"a\":{}1{}}}", open.repeat(levels - 1), close.repeat(levels - 1)).into_bytes()
    };
    let number = |text: String| format!("{{\"a\":{text}}}").into_bytes();
    vec![
        ("128 levels of arrays", nested("[", "]", 128), true),
        ("128 levels of objects", nested("{\"k\":", "}", 128), true),
        ("limit: 129 levels of arrays", nested("[", "]", 129), false),
        ("limit: 129 levels of objects", nested("{\"k\":", "}", 129), false),
        ("65 levels of mixed containers", nested("[{\"k\":", "}]", 33), true),
        ("400 digits", number("9".repeat(400)), true),
        ("-400 digits", number(format!("-{}", "9".repeat(400))), true),
        ("400 digits with a point", number(format!("-{}.{}", "9".repeat(200), "9".repeat(200))), true),
        ("400 digits with a large exponent", number(format!("{}e400", "9".repeat(400))), true),
        ("400 decimals with a small exponent", number(format!("0.{}e-400", "9".repeat(399))), true),
        ("limit: 401 digits", number("9".repeat(401)), false),
        ("limit: 401 digits with a point", number(format!("0.{}", "0".repeat(400))), false),
        ("limit: exponent 401", number("1e401".into()), false),
        ("limit: exponent -401", number("1E-401".into()), false),
        ("limit: exponent 401 with leading zeros", number("1e00000401".into()), false),
        ("limit: zero with a large exponent", number("0e1000".into()), false),
        ("exponent beyond any integer", number("1e99999999999999999999".into()), false),
        ("string of 100 kB", format!("{{\"a\":\"{}\"}}", "x".repeat(100_000)).into_bytes(), true),
        ("key of 100 kB", format!("{{\"{}\":1}}", "x".repeat(100_000)).into_bytes(), true),
        ("string of 100 kB of escapes", format!("{{\"a\":\"{}\"}}", "\\n".repeat(50_000)).into_bytes(), true),
    ]
}
