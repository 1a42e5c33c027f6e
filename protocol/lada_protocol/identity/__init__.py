"""Who is who: certificates, enrolment, renewal, revocation, the roster."""
