//! Awkward keys and the slots that they belong to, for good: requests wait in the slots of the build that made them, so a
//! build that finds other slots for their keys would run one key in two places.
//!
//! The table was made apart from this crate, by another implementation of xxh3 over the encoded ids. It is never made anew:
//! where it does not hold, the code is wrong.

use super::*;
use crate::cluster_hook::pattern::Pattern;
use crate::cluster_hook::template::Template;
use crate::path::Path;

/// An id, how often it is repeated to make the key's id, and its places among 1, 7 and 64 slots.
const TABLE: [(&str, usize, [u32; 3]); 100] = [
    ("0", 1, [0, 3, 21]),
    ("00", 1, [0, 5, 25]),
    ("1", 1, [0, 6, 24]),
    ("-", 1, [0, 6, 54]),
    ("_", 1, [0, 0, 19]),
    (".", 1, [0, 6, 19]),
    ("..", 1, [0, 2, 14]),
    ("...", 1, [0, 0, 62]),
    ("~", 1, [0, 1, 48]),
    (" ", 1, [0, 3, 63]),
    ("  ", 1, [0, 1, 13]),
    ("\t", 1, [0, 2, 19]),
    ("\n", 1, [0, 4, 54]),
    ("\r\n", 1, [0, 0, 60]),
    ("\0", 1, [0, 6, 15]),
    ("\x7f", 1, [0, 3, 1]),
    ("'", 1, [0, 6, 34]),
    ("\"", 1, [0, 4, 45]),
    ("`", 1, [0, 3, 42]),
    ("\\", 1, [0, 3, 38]),
    ("/", 1, [0, 4, 23]),
    ("//", 1, [0, 0, 50]),
    ("/a", 1, [0, 1, 43]),
    ("a/", 1, [0, 1, 30]),
    ("a/b", 1, [0, 4, 51]),
    ("a//b", 1, [0, 1, 10]),
    ("stores/a", 1, [0, 2, 44]),
    ("/stores/a", 1, [0, 0, 60]),
    ("../a", 1, [0, 0, 41]),
    ("%", 1, [0, 2, 60]),
    ("%%", 1, [0, 6, 51]),
    ("%2F", 1, [0, 1, 52]),
    ("%2f", 1, [0, 5, 59]),
    ("%25", 1, [0, 2, 10]),
    ("%252F", 1, [0, 5, 50]),
    ("a%b", 1, [0, 3, 49]),
    ("%zz", 1, [0, 2, 2]),
    ("100%", 1, [0, 4, 2]),
    ("a b", 1, [0, 4, 55]),
    (" a", 1, [0, 5, 59]),
    ("a ", 1, [0, 5, 56]),
    ("a+b", 1, [0, 6, 58]),
    ("a&b=c", 1, [0, 0, 35]),
    ("a?b", 1, [0, 1, 5]),
    ("a#b", 1, [0, 2, 4]),
    ("a;b", 1, [0, 3, 13]),
    ("a:b", 1, [0, 3, 25]),
    ("a,b", 1, [0, 0, 62]),
    ("a|b", 1, [0, 5, 9]),
    ("a<b>", 1, [0, 1, 38]),
    ("{store}", 1, [0, 4, 14]),
    ("}", 1, [0, 3, 56]),
    ("*", 1, [0, 2, 13]),
    ("**", 1, [0, 5, 0]),
    ("$1", 1, [0, 4, 62]),
    ("a@b.c", 1, [0, 6, 36]),
    ("!", 1, [0, 3, 26]),
    ("^", 1, [0, 2, 54]),
    ("a", 1, [0, 1, 31]),
    ("A", 1, [0, 1, 5]),
    ("aa", 1, [0, 5, 51]),
    ("aA", 1, [0, 0, 26]),
    ("Ab", 1, [0, 0, 54]),
    ("store", 1, [0, 3, 30]),
    ("Store", 1, [0, 0, 62]),
    ("STORE", 1, [0, 2, 38]),
    ("null", 1, [0, 0, 33]),
    ("true", 1, [0, 4, 41]),
    ("-1", 1, [0, 0, 31]),
    ("007", 1, [0, 4, 2]),
    ("9", 1, [0, 0, 40]),
    ("10", 1, [0, 0, 50]),
    ("18446744073709551615", 1, [0, 6, 55]),
    ("1e9", 1, [0, 4, 14]),
    ("0x0", 1, [0, 4, 55]),
    ("é", 1, [0, 6, 41]),
    ("e\u{301}", 1, [0, 2, 26]),
    ("É", 1, [0, 6, 22]),
    ("ß", 1, [0, 5, 28]),
    ("ss", 1, [0, 6, 33]),
    ("ñandú", 1, [0, 4, 53]),
    ("Ω", 1, [0, 0, 40]),
    ("\u{2126}", 1, [0, 4, 26]),
    ("日本", 1, [0, 2, 52]),
    ("日本語", 1, [0, 0, 55]),
    ("한국어", 1, [0, 4, 36]),
    ("العربية", 1, [0, 4, 30]),
    ("עברית", 1, [0, 2, 12]),
    ("ไทย", 1, [0, 6, 15]),
    ("🙂", 1, [0, 0, 13]),
    ("👩\u{200d}👧", 1, [0, 5, 63]),
    ("\u{feff}a", 1, [0, 3, 8]),
    ("\u{200b}", 1, [0, 5, 44]),
    ("ı", 1, [0, 4, 31]),
    ("İ", 1, [0, 3, 51]),
    ("ﬀ", 1, [0, 0, 19]),
    ("a", 255, [0, 1, 9]),
    ("a", 256, [0, 2, 51]),
    ("é", 128, [0, 5, 44]),
    ("/", 256, [0, 0, 13]),
];

#[test]
fn k49_awkward_keys_belong_to_the_same_slots_for_good() {
    let pattern = Pattern::parse("/stores/{store}/**").unwrap();
    let template = Template::parse("{store}").unwrap().bind(&pattern).unwrap();
    let hook = HookNumber(5);
    for (text, times, places) in TABLE {
        let id = text.repeat(times);
        let path = Path::root().child("stores", &id).unwrap();
        let key = template.key(&path);
        for (count, place) in [1, 7, 64].into_iter().zip(places) {
            assert_eq!(slot_index(&key, count), place, "{id:?} among {count} slots");
            // Nor does the number that is stored with a lease or a request ever mean another slot.
            let layout = SlotLayout { generation: 3, count, since: Revision(1), until: None };
            assert_eq!(layout.slot_of(hook, &key), SlotId { hook, slot: 12_288 + place }, "{id:?} among {count} slots");
        }
    }
}
