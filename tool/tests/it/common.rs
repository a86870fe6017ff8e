//! Values, and machines that exchange messages, as the library's own tests have them.
#![allow(dead_code, unused_imports)]

#[path = "../../../tests/common/fixture.rs"]
pub mod fixture;
#[path = "../../../tests/common/machine.rs"]
pub mod machine;
#[path = "../../../tests/common/values.rs"]
pub mod values;
