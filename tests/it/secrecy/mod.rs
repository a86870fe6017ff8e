//! Rule 18: nothing readable at rest, and nothing readable in logs, errors and `Debug`.

mod at_rest;
mod logs;
