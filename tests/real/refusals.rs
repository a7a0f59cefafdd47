//! What cannot go well is refused before anything is touched.
