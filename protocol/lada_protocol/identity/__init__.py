"""Who is who: certificates, enrolment, revocation, the roster."""
