//! Rule 18: no secret is readable at rest, in logs, in errors or in `Debug` output.

mod at_rest;
mod logs;
